"""The doubt beside the certificate: which student it is of, and what a reply of its teacher costs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from proxykd.certification.certificate_model import DoubtReport, Price
from proxykd.certification.doubt import Doubt
from proxykd.certification.spending import Spent
from proxykd.certification.wording import not_enough
from proxykd.collection.dataset import Dataset
from proxykd.errors import BenchmarkError
from proxykd.runs.json_model import read_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_json

CERTIFICATE = "certificate.json"
DOUBT, WITH_PROXY = "doubt.json", "doubt-with-proxy.json"
TOLD = {DOUBT: "doubt", WITH_PROXY: "doubt_with_proxy"}
"""What a certificate says of each."""


def student_digest(run: RunDirectory) -> str:
    """A hash of the hashes of the student's files."""
    files = read_json(run.student / "manifest.json")["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def keep_doubt(path: Path, doubt: Doubt | None) -> None:
    """Writes it into the folder of the certificate; where there is none, one of before goes."""
    if doubt is not None:
        write_json(path, doubt.model_dump(mode="json"))
    else:
        path.unlink(missing_ok=True)


def read_doubt(run: RunDirectory, name: str = DOUBT) -> Doubt:
    """What the run's certificate says of its student's doubt, by its own log-probs or by those of its proxy too.

    Raises:
        BenchmarkError: no certificate, one of another student, or one that has too few prompts for a doubt.
    """
    again = f"proxykd certify {run.root}"
    certificate = run.report.parent / CERTIFICATE
    if not certificate.exists():
        raise BenchmarkError(f"{run.id} has no certificate, which tells when its student is in doubt; first: {again}")
    if not (run.report.parent / name).exists():
        found = read_json(certificate)
        told = found.get(TOLD[name])
        asked = name == DOUBT or "proxy" in found["facts"]["models"]
        none = "is of before there was one" if asked else "no proxy was beside the student (does the run have one?)"
        why = none if told is None else not_enough(DoubtReport.model_validate(told))
        raise BenchmarkError(f"the certificate of {run.id} has no such doubt: {why}; again: {again}")
    doubt = read_model(run.report.parent / name, Doubt)
    if doubt.student_sha256 != (student := student_digest(run)):
        raise BenchmarkError(
            f"the certificate of {run.id} is of the student {doubt.student_sha256[:12]}, and the run's student is "
            f"{student[:12]}; certify it: {again} --output a new folder keeps the old answers apart"
        )
    return doubt


def price_of_reply(run: RunDirectory, asked: Spent | None) -> Price | None:
    """What a reply of the teacher costs: as asked for this certificate, or for the run's corpus; None where neither
    tells."""
    if asked is not None and asked.cost:
        return Price(reply=asked.cost / asked.replies, currency=asked.currency, source="this certificate's answers")
    summary = Dataset(run.collected).summary
    told = read_json(summary) if summary.exists() else {}
    if not told.get("cost") or not told.get("records"):
        return None
    return Price(reply=told["cost"] / told["records"], currency=told["currency"], source="the run's corpus")
