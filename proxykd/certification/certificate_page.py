"""A certificate as one page: no script, no network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from proxykd.certification import wording
from proxykd.certification.certificate_model import STUDENT, Certificate

TEMPLATE = Path(__file__).parent / "templates" / "certificate.html.j2"


def certificate_page(certificate: Certificate) -> str:
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    overall = certificate.overall
    models = {STUDENT: overall.student, **overall.beside}
    return template.render(certificate=certificate, overall=overall, models=models, words=wording, zip=zip)
