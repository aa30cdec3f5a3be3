//! The same calls between two processes: `length: u32, kind: u8, call: u64, rest`, all little-endian.

use thiserror::Error;

/// Of one frame; a list of every container of a full host is a hundredth of it.
pub const LIMIT: usize = 64 * 1024 * 1024;

const HEADER: usize = 9;

/// What one side tells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the functions of the C interface, by the same names")]
pub enum Frame {
    /// Host: load what this JSON says. Runner: this JSON is what was loaded.
    Load {
        json: Vec<u8>,
    },
    /// Runner: it cannot be loaded, and why.
    Refused {
        message: Vec<u8>,
    },
    Create {
        call: u64,
        config: Vec<u8>,
    },
    Call {
        call: u64,
        method: u32,
        window: u32,
        request: Vec<u8>,
    },
    Cancel {
        call: u64,
    },
    Grant {
        call: u64,
        credits: u32,
    },
    Shutdown {
        call: u64,
    },
    Complete {
        call: u64,
        status: i32,
        body: Vec<u8>,
    },
    Emit {
        call: u64,
        item: Vec<u8>,
    },
    /// A JSON object: level, target, message, fields.
    Log {
        json: Vec<u8>,
    },
}

/// The other side does not speak this protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadFrame {
    /// Its length.
    #[error("a frame of {0} bytes; at most {LIMIT} are allowed")]
    Length(usize),
    /// Its kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Its content.
    #[error("a frame that ends too early")]
    Short,
}

impl Frame {
    /// With the length in front.
    pub fn encode(&self) -> Vec<u8> {
        let none: &[u8] = &[];
        let (kind, call, numbers, bytes): (u8, u64, [Option<u32>; 2], &[u8]) = match self {
            Self::Load { json } => (1, 0, [None; 2], json),
            Self::Refused { message } => (2, 0, [None; 2], message),
            Self::Create { call, config } => (3, *call, [None; 2], config),
            Self::Call { call, method, window, request } => {
                (4, *call, [Some(*method), Some(*window)], request)
            }
            Self::Cancel { call } => (5, *call, [None; 2], none),
            Self::Grant { call, credits } => (6, *call, [Some(*credits), None], none),
            Self::Shutdown { call } => (7, *call, [None; 2], none),
            Self::Complete { call, status, body } => (8, *call, [Some(status.cast_unsigned()), None], body),
            Self::Emit { call, item } => (9, *call, [None; 2], item),
            Self::Log { json } => (10, 0, [None; 2], json),
        };
        let length = HEADER + numbers.iter().flatten().count() * 4 + bytes.len();
        let mut out = Vec::with_capacity(4 + length);
        // What is longer is refused by the reader; senders bound what they send.
        out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        out.push(kind);
        out.extend(call.to_le_bytes());
        numbers.iter().flatten().for_each(|number| out.extend(number.to_le_bytes()));
        out.extend(bytes);
        out
    }

    /// How many bytes follow these four.
    ///
    /// # Errors
    /// Too many, or too few for any frame.
    pub fn length(prefix: [u8; 4]) -> Result<usize, BadFrame> {
        let length = u32::from_le_bytes(prefix) as usize;
        if (HEADER..=LIMIT).contains(&length) { Ok(length) } else { Err(BadFrame::Length(length)) }
    }

    /// Without the length.
    ///
    /// # Errors
    /// It is no frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadFrame> {
        let (kind, rest) = bytes.split_first().ok_or(BadFrame::Short)?;
        let (call, rest) = rest.split_first_chunk().ok_or(BadFrame::Short)?;
        let call = u64::from_le_bytes(*call);
        let number = |bytes: &mut &[u8]| -> Result<u32, BadFrame> {
            let (number, rest) = bytes.split_first_chunk().ok_or(BadFrame::Short)?;
            *bytes = rest;
            Ok(u32::from_le_bytes(*number))
        };
        let mut rest = rest;
        Ok(match kind {
            1 => Self::Load { json: rest.to_vec() },
            2 => Self::Refused { message: rest.to_vec() },
            3 => Self::Create { call, config: rest.to_vec() },
            4 => {
                let (method, window) = (number(&mut rest)?, number(&mut rest)?);
                Self::Call { call, method, window, request: rest.to_vec() }
            }
            5 => Self::Cancel { call },
            6 => Self::Grant { call, credits: number(&mut rest)? },
            7 => Self::Shutdown { call },
            8 => {
                let status = number(&mut rest)?.cast_signed();
                Self::Complete { call, status, body: rest.to_vec() }
            }
            9 => Self::Emit { call, item: rest.to_vec() },
            10 => Self::Log { json: rest.to_vec() },
            kind => return Err(BadFrame::Kind(*kind)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back() {
        let bytes = vec![1, 2, 3];
        for frame in [
            Frame::Load { json: bytes.clone() },
            Frame::Refused { message: Vec::new() },
            Frame::Create { call: 1, config: bytes.clone() },
            Frame::Call { call: u64::MAX, method: 0x1_0008, window: 64, request: bytes.clone() },
            Frame::Cancel { call: 7 },
            Frame::Grant { call: 7, credits: 32 },
            Frame::Shutdown { call: 8 },
            Frame::Complete { call: 9, status: -1, body: bytes.clone() },
            Frame::Emit { call: 9, item: Vec::new() },
            Frame::Log { json: bytes },
        ] {
            let encoded = frame.encode();
            let (length, body) = encoded.split_first_chunk().unwrap();
            assert_eq!(Frame::length(*length), Ok(body.len()));
            assert_eq!(Frame::decode(body), Ok(frame));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(Frame::length([0xff; 4]), Err(BadFrame::Length(u32::MAX as usize)));
        assert_eq!(Frame::decode(&[]), Err(BadFrame::Short));
        assert_eq!(Frame::decode(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Err(BadFrame::Short));
        assert_eq!(Frame::decode(&[99, 0, 0, 0, 0, 0, 0, 0, 0]), Err(BadFrame::Kind(99)));
    }
}
