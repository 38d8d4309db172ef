//! Where the time of a job goes, by what dispatchers and workers tell of themselves.

use crate::access::Http;
use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;

/// What is read: the name of a hop, and the histogram that measures it.
const HOPS: [(&str, &str); 3] = [
    ("dispatcher", "straightline_dispatch_seconds"),
    ("worker", "straightline_job_seconds"),
    ("model", "straightline_run_seconds"),
];

/// Where measures are read.
pub enum Measures<'a> {
    /// From the ports of processes.
    Ports(Vec<&'a Http>),
    /// From this process.
    Own(&'a PrometheusHandle),
    /// Nowhere: the processes are somebody else's.
    None,
}

/// Time and number of jobs, by hop, since the processes began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums([(f64, f64); 3]);

impl Measures<'_> {
    /// As it stands.
    pub async fn read(&self) -> Result<Sums> {
        let mut sums = Sums::default();
        match self {
            Self::Ports(ports) => {
                for port in ports {
                    sums.add(&port.text("/metrics").await?);
                }
            }
            Self::Own(handle) => sums.add(&handle.render()),
            Self::None => {}
        }
        Ok(sums)
    }
}

impl Sums {
    fn add(&mut self, text: &str) {
        for ((seconds, count), (_, histogram)) in self.0.iter_mut().zip(HOPS) {
            for line in text.lines() {
                let Some(rest) = line.strip_prefix(histogram) else { continue };
                let value = || rest.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
                if rest.starts_with("_sum") {
                    *seconds += value().unwrap_or(0.0);
                } else if rest.starts_with("_count") {
                    *count += value().unwrap_or(0.0);
                }
            }
        }
    }

    /// The mean of each hop since `before`, in milliseconds; those that measured nothing are left out.
    pub fn since(&self, before: &Self) -> Vec<(&'static str, f64)> {
        let passed = self.0.iter().zip(before.0).zip(HOPS);
        let means = passed.map(|(((seconds, count), before), (hop, _))| {
            (hop, (seconds - before.0) / (count - before.1) * 1e3)
        });
        means.filter(|(_, mean)| mean.is_finite()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_what_came_between_over_all_processes_and_labels() {
        let text = |sum: f64, count: u32| {
            format!(
                "# TYPE straightline_job_seconds histogram\n\
                 straightline_job_seconds_bucket{{lane=\"local\",le=\"0.1\"}} 1\n\
                 straightline_job_seconds_sum{{lane=\"local\"}} {sum}\n\
                 straightline_job_seconds_count{{lane=\"local\"}} {count}\n\
                 straightline_dispatch_seconds_sum 1.5\nstraightline_dispatch_seconds_count 10\n"
            )
        };
        let (mut before, mut after) = (Sums::default(), Sums::default());
        before.add(&text(1.0, 100));
        for text in [text(1.5, 150), text(0.5, 50)] {
            after.add(&text);
        }
        assert_eq!(after.since(&before), [("dispatcher", 150.0), ("worker", 10.0)]);
        assert!(before.since(&before).is_empty());
    }
}
