//! The one call on the path of every job: what goes out and what comes back.

use super::Redis;
use super::keys::millis;
use crate::StateError;
use crate::facts::{Batch, Facts, LaneFacts, ModelFacts};
use crate::window::Span;
use bytes::Bytes;
use deadpool_redis::redis::{Cmd, FromRedisValue, Pipeline, Value, from_redis_value};
use schemas::{Lane, LaneSet};
use std::vec::IntoIter;

impl Redis {
    pub(super) async fn observe_batch(&self, batch: &Batch) -> Result<Facts, StateError> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(self.observe_call(batch));
        let (answer, ended) = if batch.ids.is_empty() {
            let (answer,) = self.link.call("observe", &pipeline).await?;
            (answer, Vec::new())
        } else {
            pipeline.add_command(self.fetch_call(&batch.ids));
            self.link.call("observe", &pipeline).await?
        };
        Answer::new(answer).facts(batch, ended)
    }

    fn observe_call(&self, batch: &Batch) -> Cmd {
        let span = Span::of(batch.window);
        let mut call = self.link.scripts().observe.call(self.keys.workers.len() + 1 + batch.models.len());
        call.arg(&self.keys.workers[..]).arg(self.keys.one("s"));
        for (model, _) in &batch.models {
            call.arg(self.keys.window(span.slice_us(), model));
        }
        call.arg(span.slice_us()).arg(millis(span.memory())).arg(millis(self.limits.model_memory));
        call.arg(&batch.claim);
        match batch.unused {
            Some(unused) => call.arg(unused.stamp).arg(&unused.places),
            // No sample has this stamp.
            None => call.arg(-1).arg(&[0; 3]),
        };
        for (model, jobs) in &batch.models {
            call.arg(model.as_str()).arg(jobs);
        }
        call
    }
}

/// The script's answer, read from front to back.
struct Answer(IntoIter<Value>);

impl Answer {
    fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    fn facts(mut self, batch: &Batch, ended: Vec<Option<Bytes>>) -> Result<Facts, StateError> {
        let stamp = self.next()?;
        let mut lanes = [LaneFacts::default(); 3];
        for lane in &mut lanes {
            *lane = LaneFacts {
                workers: self.number()?,
                slots: self.number()?,
                granted: self.number()?,
                left: self.number()?,
            };
        }
        let span = Span::of(batch.window);
        let mut models = Vec::with_capacity(batch.models.len());
        for _ in &batch.models {
            let per_second = span.per_second(self.next()?);
            let bits: u8 = self.next()?;
            let serving = Lane::ALL.into_iter().filter(|lane| LaneSet::from_bits(bits).contains(*lane));
            models.push(ModelFacts { per_second, lanes: serving.collect(), known: self.next()? });
        }
        Ok(Facts { models, ended, lanes, stamp })
    }

    /// A number that is a sum in the server and may be larger than any real one.
    fn number(&mut self) -> Result<u32, StateError> {
        Ok(u32::try_from(self.next::<u64>()?).unwrap_or(u32::MAX))
    }

    fn next<T: FromRedisValue>(&mut self) -> Result<T, StateError> {
        let corrupt = |reason| StateError::Corrupt { key: "the answer to observe".to_owned(), reason };
        let value = self.0.next().ok_or_else(|| corrupt("it is too short".to_owned()))?;
        from_redis_value(value).map_err(|error| corrupt(error.to_string()))
    }
}
