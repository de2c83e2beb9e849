//! What a context has to say about its work, for bug reports.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;

/// So many lines are kept for [`Log::read`].
const KEPT: usize = 256;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Work failed, and nobody may be there to whom its result goes: a job's.
    Error = 1,
    /// Work goes on in another way than it was asked for.
    Warning,
    /// What was opened and loaded.
    Info,
    /// What was made.
    Debug,
}

/// Receives lines. Any thread that is inside the library calls it, several may at a time, and none holds a lock.
pub type LogFn = dyn Fn(Level, &str) + Send + Sync;

/// Where the lines of one context go: to a function, or, as the default, to a list of the last 256 that
/// [`Log::read`] takes from. A clone is another handle to the same place.
#[derive(Clone, Default)]
pub struct Log(Arc<Place>);

#[derive(Default)]
struct Place {
    function: Option<Box<LogFn>>,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<(Level, String)>,
    /// Lines that made room for others since the last one was read.
    dropped: u64,
}

impl Log {
    /// A log whose lines go to `function`.
    pub fn to(function: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Log(Arc::new(Place { function: Some(Box::new(function)), ..Default::default() }))
    }

    /// Something failed.
    pub fn error(&self, line: impl fmt::Display) {
        self.write(Level::Error, &line);
    }

    /// Something is not as it was asked for.
    pub fn warning(&self, line: impl fmt::Display) {
        self.write(Level::Warning, &line);
    }

    /// Something was opened or loaded.
    pub fn info(&self, line: impl fmt::Display) {
        self.write(Level::Info, &line);
    }

    /// Something was made.
    pub fn debug(&self, line: impl fmt::Display) {
        self.write(Level::Debug, &line);
    }

    /// Call it without locks, since the function may call the library, and within a turn of the context's, since none is
    /// called after it was shut down.
    fn write(&self, level: Level, line: &dyn fmt::Display) {
        let place = &*self.0;
        // Paths may hold anything; a line is one line of text.
        let line: String = line.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match &place.function {
            Some(function) => function(level, &line),
            None => place.lines.lock().unwrap_or_else(PoisonError::into_inner).push(level, line),
        }
    }

    /// Shows the oldest line to `take`, or nothing if there is none, and forgets it if `take` returns true.
    ///
    /// # Errors
    /// Those of `take`; the line stays.
    pub fn read(&self, take: impl FnOnce(Option<(Level, &str)>) -> Result<bool>) -> Result<()> {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.say_what_is_missing();
        if take(lines.kept.front().map(|(level, line)| (*level, line.as_str())))? {
            lines.kept.pop_front();
        }
        Ok(())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.function.is_some() { "Log::to(..)" } else { "Log" })
    }
}

impl Lines {
    fn push(&mut self, level: Level, line: String) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back((level, line));
    }

    /// Puts a line in the place of those that were dropped.
    fn say_what_is_missing(&mut self) {
        if let count @ 1.. = std::mem::take(&mut self.dropped) {
            self.kept.push_front((Level::Warning, format!("{count} lines of the log were dropped")));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Error;

    fn next(log: &Log) -> Option<(Level, String)> {
        let mut line = None;
        log.read(|oldest| {
            line = oldest.map(|(level, text)| (level, text.to_owned()));
            Ok(true)
        })
        .unwrap();
        line
    }

    #[test]
    fn lines_are_read_in_their_order() {
        let log = Log::default();
        log.info("one");
        log.error("two\nlines\0");
        assert!(matches!(log.read(|_| Err(Error::Cancelled)), Err(Error::Cancelled)));
        log.read(|_| Ok(false)).unwrap();
        assert_eq!(next(&log), Some((Level::Info, "one".into())));
        assert_eq!(next(&log), Some((Level::Error, "two lines ".into())));
        assert_eq!(next(&log), None);
    }

    #[test]
    fn the_oldest_lines_make_room() {
        let log = Log::default();
        (0..KEPT + 3).for_each(|i| log.debug(i));
        assert_eq!(next(&log), Some((Level::Warning, "3 lines of the log were dropped".into())));
        (3..KEPT + 3).for_each(|i| assert_eq!(next(&log), Some((Level::Debug, i.to_string()))));
        assert_eq!(next(&log), None);
    }

    #[test]
    fn a_function_may_use_its_own_log() {
        let (lines, log) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None::<Log>)));
        let (seen, own) = (lines.clone(), log.clone());
        *log.lock().unwrap() = Some(Log::to(move |level, line| {
            seen.lock().unwrap().push((level, line.to_owned()));
            let own = own.lock().unwrap().clone().unwrap();
            if level == Level::Error {
                own.debug("again");
            }
            assert_eq!(next(&own), None);
        }));
        let log = log.lock().unwrap().clone().unwrap();
        log.error("first");
        assert_eq!(*lines.lock().unwrap(), [(Level::Error, "first".into()), (Level::Debug, "again".into())]);
    }
}
