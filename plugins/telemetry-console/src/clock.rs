//! Times as text. UTC in both formats, so that lines can be compared with those of other hosts and engines.

use std::time::{Duration, SystemTime};

/// The last second of the year 9999, the last that the format can write.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// `2026-11-23T03:48:13.123456Z`.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let at = at.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST);
    humantime::format_rfc3339_micros(at).to_string()
}

/// `03:48:13.123`.
pub(crate) fn time_of_day(at: SystemTime) -> String {
    rfc3339(at).chars().skip(11).take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_clock_can_be_written() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_633_366_678_649_001);
        assert_eq!(rfc3339(at), "2021-10-04T16:57:58.649001Z");
        assert_eq!(time_of_day(at), "16:57:58.649");
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(rfc3339(before), "1970-01-01T00:00:00.000000Z");
        let after = SystemTime::UNIX_EPOCH + LAST + Duration::from_secs(1);
        assert_eq!(rfc3339(after), "9999-12-31T23:59:59.000000Z");
    }
}
