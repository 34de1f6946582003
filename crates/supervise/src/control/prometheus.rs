//! Statistics in Prometheus' text format, by KubeVirt's names where it has them
//! (kubevirt/kubevirt, `docs/observability/metrics.md`).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::wire::{Disk, Network, Statistics};

/// The statistics of the machine with this name.
pub(super) fn text(name: &str, statistics: &Statistics) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(families(name, statistics))));
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

type Labels = Vec<(&'static str, String)>;

/// A metric with its samples.
#[derive(Debug)]
struct Family {
    /// Without the `_total` that a counter gets.
    name: String,
    help: String,
    kind: MetricType,
    samples: Vec<(Labels, f64)>,
}

#[derive(Debug)]
struct Metrics(Vec<Family>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Family { name, help, kind, samples } in &self.0 {
            let mut metric = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, value) in samples {
                let sample = metric.encode_family(labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(*value).encode(sample)?,
                    _ => ConstGauge::new(*value).encode(sample)?,
                }
            }
        }
        Ok(())
    }
}

/// A metric's name without its beginning, what it says, and how it is read.
type Column<T> = (&'static str, &'static str, fn(&T) -> u64);

const DISK: [Column<Disk>; 7] = [
    ("read_traffic_bytes", "Bytes that the guest read", |disk| disk.read_bytes),
    ("write_traffic_bytes", "Bytes that the guest wrote", |disk| disk.written_bytes),
    ("iops_read", "Reads of the guest", |disk| disk.read_requests),
    ("iops_write", "Writes of the guest", |disk| disk.write_requests),
    ("flush_requests", "Flushes of the guest", |disk| disk.flushes),
    ("discard_requests", "Discards and requests to write zeros", |disk| disk.discards),
    ("errors", "Requests that failed", |disk| disk.errors),
];

const NETWORK: [Column<Network>; 8] = [
    ("receive_bytes", "Bytes that the guest received", |net| net.received_bytes),
    ("receive_packets", "Packets that the guest received", |net| net.received_packets),
    ("receive_packets_dropped", "Dropped on the way to the guest", |net| net.received_dropped),
    ("receive_errors", "Failed on the way to the guest", |net| net.receive_errors),
    ("transmit_bytes", "Bytes that the guest sent", |net| net.transmitted_bytes),
    ("transmit_packets", "Packets that the guest sent", |net| net.transmitted_packets),
    ("transmit_packets_dropped", "Dropped on the way out", |net| net.transmitted_dropped),
    ("transmit_errors", "Failed on the way out", |net| net.transmit_errors),
];

/// The metrics that have samples.
fn families(machine: &str, statistics: &Statistics) -> Vec<Family> {
    let own = |labels: &[(&'static str, &str)]| -> Labels {
        let labels = labels.iter().map(|(key, value)| (*key, (*value).to_owned()));
        [("name", machine.to_owned())].into_iter().chain(labels).collect()
    };
    let mut families = Vec::new();
    let mut add = |name: String, help: &str, kind, samples: Vec<(Labels, f64)>| {
        if !samples.is_empty() {
            families.push(Family { name, help: help.to_owned(), kind, samples });
        }
    };
    for (name, help, read) in DISK {
        let disks = statistics.disks.iter();
        let samples = disks.map(|disk| (own(&[("drive", &disk.name)]), read(disk) as f64));
        add(format!("kubevirt_vmi_storage_{name}"), help, MetricType::Counter, samples.collect());
    }
    for (name, help, read) in NETWORK {
        let networks = statistics.networks.iter();
        let samples = networks.map(|net| (own(&[("interface", &net.name)]), read(net) as f64));
        add(format!("kubevirt_vmi_network_{name}"), help, MetricType::Counter, samples.collect());
    }
    let processors = || statistics.processors.iter().enumerate();
    let seconds = processors()
        .filter_map(|(id, processor)| Some((own(&[("id", &id.to_string())]), processor.seconds?)));
    let help = "Time that the host's processors gave to the processor, exits included";
    add("kubevirt_vmi_vcpu_seconds".into(), help, MetricType::Counter, seconds.collect());
    let exits = processors().flat_map(|(id, processor)| {
        let exits = processor.exits.iter();
        let labels = move |reason: &str| own(&[("id", &id.to_string()), ("reason", reason)]);
        exits.map(move |(reason, count)| (labels(reason), *count as f64))
    });
    let help = "How often the processor left the guest";
    add("bootyard_vmi_exits".into(), help, MetricType::Counter, exits.collect());
    let one =
        |value: Option<u64>| value.map(|value| (own(&[]), value as f64)).into_iter().collect();
    let help = "How often the guest was started again in place";
    add("bootyard_vmi_restarts".into(), help, MetricType::Counter, one(statistics.restarts));
    let help = "Memory that the machine was given";
    let memory = one(statistics.memory_bytes);
    add("kubevirt_vmi_memory_domain_bytes".into(), help, MetricType::Gauge, memory);
    let help = "Memory of the host that the machine's process takes";
    let memory = one(statistics.resident_bytes);
    add("kubevirt_vmi_memory_resident_bytes".into(), help, MetricType::Gauge, memory);
    for (name, value) in &statistics.balloon {
        let help = "What the guest's balloon tells";
        let name = format!("kubevirt_vmi_memory_{}", name.replace('-', "_"));
        add(name, help, MetricType::Gauge, one(Some(*value)));
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::Processor;

    #[test]
    fn metrics_have_kubevirts_names() {
        let disk = Disk { name: "ro\"ot".into(), read_bytes: 4096, ..Disk::default() };
        let processor = Processor { seconds: Some(1.5), exits: [("port-read".into(), 7)].into() };
        let statistics = Statistics {
            memory_bytes: Some(1 << 30),
            resident_bytes: None,
            balloon: [("actual_balloon_bytes".to_owned(), 5)].into(),
            restarts: Some(2),
            processors: vec![processor],
            disks: vec![disk],
            networks: vec![Network { name: "default".into(), ..Network::default() }],
        };
        let text = text("web", &statistics);
        for line in [
            "# TYPE kubevirt_vmi_storage_read_traffic_bytes counter",
            r#"kubevirt_vmi_storage_read_traffic_bytes_total{name="web",drive="ro\"ot"} 4096.0"#,
            r#"kubevirt_vmi_network_receive_bytes_total{name="web",interface="default"} 0.0"#,
            r#"kubevirt_vmi_vcpu_seconds_total{name="web",id="0"} 1.5"#,
            r#"bootyard_vmi_exits_total{name="web",id="0",reason="port-read"} 7.0"#,
            r#"bootyard_vmi_restarts_total{name="web"} 2.0"#,
            "# TYPE kubevirt_vmi_memory_domain_bytes gauge",
            r#"kubevirt_vmi_memory_domain_bytes{name="web"} 1073741824.0"#,
            r#"kubevirt_vmi_memory_actual_balloon_bytes{name="web"} 5.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("resident"));
    }
}
