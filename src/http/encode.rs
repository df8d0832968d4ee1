//! From numbers to text, in the two forms that Prometheus reads.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    metric::{Kind, Metric},
    samples::{Number, Samples},
};

/// A form of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Form {
    /// The form for what a client says it takes: OpenMetrics for those that name it.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The samples as text.
///
/// # Errors
/// Whatever the encoder refuses, which is nothing that [`Samples`] holds.
pub(super) fn encode(samples: Samples, form: Form) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(samples));
    let mut page = String::new();
    match form {
        Form::Prometheus => prometheus_text::encode(&mut page, &registry)?,
        Form::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for &metric in Metric::ALL {
            let Some(samples) = self.get(metric) else { continue };
            let family = metric.family();
            // The encoder writes these suffixes itself.
            let (suffix, kind) = match family.kind {
                Kind::Counter => ("_total", MetricType::Counter),
                Kind::Gauge => ("", MetricType::Gauge),
                Kind::Info => ("_info", MetricType::Info),
            };
            let name = family.name.strip_suffix(suffix).unwrap_or(family.name);
            let mut written = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (values, number) in samples {
                let labels: Vec<(&str, &str)> =
                    family.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                match family.kind {
                    Kind::Info => written.encode_info(&labels)?,
                    kind if labels.is_empty() => sample(&mut written, kind, *number)?,
                    kind => sample(&mut written.encode_family(&labels)?, kind, *number)?,
                }
            }
        }
        Ok(())
    }
}

fn sample(encoder: &mut MetricEncoder<'_>, kind: Kind, number: Number) -> Result<(), fmt::Error> {
    type NoLabels = Vec<(String, String)>;
    match (kind, number) {
        (Kind::Counter, Number::Whole(n)) => encoder.encode_counter::<NoLabels, _, u64>(&n, None),
        (Kind::Counter, Number::Real(n)) => encoder.encode_counter::<NoLabels, _, u64>(&n, None),
        (_, Number::Whole(n)) => encoder.encode_gauge(&n),
        (_, Number::Real(n)) => encoder.encode_gauge(&n),
    }
}
