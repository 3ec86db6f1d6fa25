"""What of a student's model card its owner alone knows."""

from __future__ import annotations

from pydantic import Field

from proxykd.config.sections import Section


class CardConfig(Section):
    """What the model card of a student says that no run can know ([card.md](card.md)); no result depends on it."""

    licence: str | None = Field(None, min_length=1)
    """The student's licence, as the hub spells it (`apache-2.0`)."""
    language: tuple[str, ...] = ()
    """Languages of the teacher's text, by ISO 639-1 (`en`)."""
    dataset: str | None = Field(None, min_length=1)
    """The data set's name on the hub (`owner/name`)."""
