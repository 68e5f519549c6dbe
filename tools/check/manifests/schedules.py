"""Rules about what starts on a schedule, when nobody watches."""

from collections.abc import Iterator

from tools.check.manifests.subjects import Object, mapping, of_kind
from tools.check.rules import rule

# What a CronJob does without each of these fields.
OPTIONAL_FIELDS = {
    "concurrencyPolicy": "a run that is late runs beside the next one",
    "startingDeadlineSeconds": "a missed run starts at any later time",
    "timeZone": "the schedule is in the time zone of the control plane",
    "successfulJobsHistoryLimit": "how many finished jobs are kept is left to Kubernetes",
    "failedJobsHistoryLimit": "how many failed jobs are kept is left to Kubernetes",
}


@rule(of_kind("CronJob"))
def cron_job_says_when_and_how_often_it_runs(cron_job: Object) -> Iterator[str]:
    for field, otherwise in OPTIONAL_FIELDS.items():
        if cron_job.spec.get(field) is None:
            yield f"{otherwise}; set {field}"


@rule(of_kind("CronJob"))
def job_of_a_cron_job_ends(cron_job: Object) -> Iterator[str]:
    job = mapping(mapping(cron_job.spec.get("jobTemplate")).get("spec"))
    if job.get("activeDeadlineSeconds") is None:
        yield "a run that hangs never ends; set jobTemplate.spec.activeDeadlineSeconds"
