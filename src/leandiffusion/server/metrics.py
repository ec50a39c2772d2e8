"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from .jobs import Job

_STEPS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_REQUESTS = (0.01, 0.1, 1, 3, 10, 30, 100, 300, 1000)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, and gauges that are read when they are asked for: `queue_length` and `models_open`."""

    def __init__(self, queue_length: Callable[[], int], models_open: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._gauges = {
            "leandiffusion_queue_length": ("Jobs that wait", queue_length),
            "leandiffusion_models_open": ("Models that are open", models_open),
        }
        here = self._registry
        self.requests = Counter("leandiffusion_requests", "Answers", ["method", "route", "status"], registry=here)
        self.seconds = Histogram(
            "leandiffusion_request_seconds", "From request to answer", ["route"], buckets=_REQUESTS, registry=here
        )
        self.jobs = Counter("leandiffusion_jobs", "Jobs that ended", ["model", "state"], registry=here)
        self.pictures = Counter("leandiffusion_pictures", "Pictures drawn", ["model"], registry=here)
        self.step = Histogram(
            "leandiffusion_step_seconds", "A denoising step", ["model"], buckets=_STEPS, registry=here
        )
        self.evictions = Counter("leandiffusion_evictions", "Models closed for others", ["model"], registry=here)
        self._registry.register(self)

    def job_ended(self, job: Job) -> None:
        """Count it."""
        self.jobs.labels(job.model, str(job.state)).inc()

    def collect(self) -> Iterable[Metric]:
        """The gauges, as they are now."""
        from ..device.memory import peak_memory
        from ..measure.memory import peak_rss, rss

        for name, (help_, read) in self._gauges.items():
            yield GaugeMetricFamily(name, help_, value=read())
        memory = GaugeMetricFamily("leandiffusion_memory_bytes", "Memory of the process", labels=["what"])
        for what, count in (("now", rss()), ("peak", peak_rss())):
            if count is not None:
                memory.add_metric([what], count)
        for peak in peak_memory():
            memory.add_metric([f"peak on {peak.device}"], peak.reserved)
        yield memory

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
