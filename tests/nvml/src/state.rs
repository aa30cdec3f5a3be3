//! What the library knows between calls: its scenario, and who waits for which events.
#![expect(unsafe_code, reason = "asks the loader where this library lies, which only C can tell")]

use std::{
    collections::BTreeMap,
    env,
    ffi::{CStr, OsStr},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::Scenario;

/// Between two looks at a scenario that hangs.
const PAUSE: Duration = Duration::from_millis(2);

static PATH: LazyLock<PathBuf> = LazyLock::new(|| match env::var_os("NVML_SCENARIO") {
    Some(path) => path.into(),
    None => beside(&own_path()),
});

static STATE: Mutex<State> = Mutex::new(State { read: None, sets: BTreeMap::new(), last_set: 0 });

/// The scenario of the library at `library`.
pub(crate) fn beside(library: &Path) -> PathBuf {
    let mut path = library.as_os_str().to_owned();
    path.push(".json");
    path.into()
}

pub(crate) struct State {
    read: Option<(Stamp, Arc<Scenario>)>,
    /// Sets of events by their handles.
    pub(crate) sets: BTreeMap<usize, Vec<Registration>>,
    pub(crate) last_set: usize,
}

/// A set waits for these of a GPU.
pub(crate) struct Registration {
    pub(crate) gpu: usize,
    pub(crate) kinds: u64,
    /// How many of the GPU's events were there before.
    pub(crate) told: usize,
}

/// Changes whenever a file is replaced.
type Stamp = (u64, i64, i64);

pub(crate) fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The scenario now; `None` when there is none, or none that can be read.
pub(crate) fn scenario() -> Option<Arc<Scenario>> {
    let metadata = fs::metadata(&*PATH).ok()?;
    let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
    let mut state = state();
    if let Some((read, scenario)) = &state.read
        && *read == stamp
    {
        return Some(Arc::clone(scenario));
    }
    let scenario = Arc::new(Scenario::read(&PATH).ok()?);
    state.read = Some((stamp, Arc::clone(&scenario)));
    Some(scenario)
}

/// The scenario once it does not hang; `hangs` says so.
pub(crate) fn patiently(hangs: impl Fn(&Scenario) -> bool) -> Option<Arc<Scenario>> {
    loop {
        let scenario = scenario()?;
        if !hangs(&scenario) {
            return Some(scenario);
        }
        std::thread::sleep(PAUSE);
    }
}

fn own_path() -> PathBuf {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is of a function of this library, and `found` outlives the call.
    let known = unsafe { libc::dladdr(own_path as *const libc::c_void, &raw mut found) };
    if known == 0 || found.dli_fname.is_null() {
        return PathBuf::new();
    }
    // SAFETY: `dladdr` succeeded, so this is the loader's own string, which lives as long as the library.
    let name = unsafe { CStr::from_ptr(found.dli_fname) };
    OsStr::from_bytes(name.to_bytes()).into()
}
