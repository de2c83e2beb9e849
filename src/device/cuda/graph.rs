//! Steps that are recorded once and then replayed, as CUDA graphs: launching one costs less than launching its kernels.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use super::api::{CUgraph, CUgraphExec};
use super::driver::Context;
use super::memory::{Gap, Pool};
use crate::Result;

/// So many steps are remembered, those that ran last.
const REMEMBERED: usize = 8;

/// The steps of one model.
///
/// Replaying a step does what it did when it was recorded, on the same addresses. That is right if the step would do the
/// same now: if the caller's key is the same, no weights came or went, and the temporaries would be given the addresses
/// that they were given then, since the same ranges are free.
pub(super) struct Graphs {
    context: Arc<Context>,
    temporaries: Arc<Pool>,
    weights: Arc<Pool>,
    steps: Mutex<Vec<Step>>,
}

/// A step that ran before.
struct Step {
    state: State,
    /// `None`: it ran once, and was not recorded.
    graph: Option<Graph>,
}

/// All that a step's operations and addresses follow from.
#[derive(PartialEq)]
struct State {
    key: Vec<u64>,
    /// What was free before the step.
    gaps: Vec<Gap>,
    /// [`Pool::changes`] of the weights.
    weights: u64,
}

impl Graphs {
    pub(super) fn new(context: &Arc<Context>, temporaries: &Arc<Pool>, weights: &Arc<Pool>) -> Self {
        let (temporaries, weights) = (temporaries.clone(), weights.clone());
        Graphs { context: context.clone(), temporaries, weights, steps: Mutex::default() }
    }

    /// [`crate::ops::Device::repeat`]: the first time the step runs as it is, which brings everything that it needs into
    /// place; the second time it is recorded; from then on it is replayed.
    pub(super) fn repeat(&self, key: &[u64], step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.context.is_profiled() {
            return step();
        }
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let state = State { key: key.into(), gaps: self.temporaries.gaps(), weights: self.weights.changes() };
        let Some(found) = steps.iter().position(|known| known.state == state) else {
            if steps.len() == REMEMBERED {
                steps.remove(0);
            }
            steps.push(Step { state, graph: None });
            return step();
        };
        let mut known = steps.remove(found);
        if known.graph.is_none() {
            known.graph = self.record(step)?;
        }
        let replayed = match &known.graph {
            Some(graph) => self.temporaries.while_free(&known.state.gaps, || graph.launch())?,
            None => false,
        };
        steps.push(known);
        if replayed { Ok(()) } else { step() }
    }

    /// Records `step` without running it; `None` if another thread took or gave back temporaries meanwhile, so that the
    /// recorded addresses may be wrong at another time.
    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        let recording = self.context.record()?;
        self.temporaries.watch();
        let result = step();
        let undisturbed = self.temporaries.end_watch();
        let graph = recording.end();
        if !undisturbed {
            return Ok(None);
        }
        result?;
        Graph::new(&self.context, graph?).map(Some)
    }
}

/// A recorded step, ready to run.
struct Graph {
    context: Arc<Context>,
    executable: CUgraphExec,
}

// SAFETY: graphs are the driver's objects, which any thread may use, one at a time: there is no sharing, `Graphs` locks.
unsafe impl Send for Graph {}

impl Graph {
    fn new(context: &Arc<Context>, recorded: Recorded<'_>) -> Result<Self> {
        let _current = context.enter()?;
        let mut executable = null_mut();
        // SAFETY: the graph is ours; `drop` destroys what is made of it.
        let code = unsafe { context.api.cuGraphInstantiateWithFlags(&mut executable, recorded.graph, 0) };
        context.check("cuGraphInstantiate", code)?;
        Ok(Graph { context: context.clone(), executable })
    }

    fn launch(&self) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: weights are where they were, and the caller saw to the temporaries.
        let code = unsafe { self.context.api.cuGraphLaunch(self.executable, self.context.stream()) };
        self.context.check("cuGraphLaunch", code)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _current = self.context.enter();
        // SAFETY: nobody launches it any more; one that is running is destroyed when it is done.
        let _ = unsafe { self.context.api.cuGraphExecDestroy(self.executable) };
    }
}

/// What a recording came to.
pub(super) struct Recorded<'a> {
    pub(super) context: &'a Context,
    pub(super) graph: CUgraph,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let _current = self.context.enter();
        // SAFETY: the graph is ours.
        let _ = unsafe { self.context.api.cuGraphDestroy(self.graph) };
    }
}
