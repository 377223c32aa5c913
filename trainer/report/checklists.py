"""Items of reporting guidelines for medical models, and which of them a model card fills.

TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378. STARD 2015: Bossuyt et al. 2015, BMJ 351:h5527; STARD-AI (Sounderajah
et al. 2025) adds to its items, in a numbering of its own that is not cited here. CLAIM 2024: Tejani et al. 2024,
Radiology: Artificial Intelligence 6(4), cited by topic.
"""

from collections.abc import Collection
from dataclasses import dataclass

from data_shards.columns import NOT_STATED


@dataclass(frozen=True, kw_only=True)
class Item:
    """A topic that the guidelines ask for.

    Attributes:
        topic: The topic.
        tripod: Numbers of the items in TRIPOD+AI, "" if it does not ask for it.
        stard: Numbers of the items in STARD 2015, likewise.
        claim: Whether CLAIM 2024 asks for it.
        needs: What must be known to fill it; "" if nothing in a card fills it.
        where: Section of the card that fills it.
    """

    topic: str
    tripod: str = ""
    stard: str = ""
    claim: bool = True
    needs: str = ""
    where: str = ""


DATA, MODEL, FIGURES, SUBGROUPS = "Data", "Model and training", "Figures", "Metrics by subgroup"
ITEMS = (
    Item(topic="Intended use", tripod="3b", stard="3", needs="intended_use", where="Intended use"),
    Item(topic="Source of the data", tripod="5a", needs="source", where=DATA),
    Item(topic="Dates of the data", tripod="5b", stard="8", needs="dates", where=DATA),
    Item(topic="Setting and sites", tripod="6a", stard="8", needs="sites", where=DATA),
    Item(topic="Eligibility of participants", tripod="6b", stard="6", needs="population", where=DATA),
    Item(topic="Image acquisition"),
    Item(topic="Preparation of the data", tripod="7", needs="index", where=DATA),
    Item(topic="Removal of identifiers", needs="group_key", where=DATA),
    Item(topic="Reference standard of the labels", tripod="8a", stard="10b", needs="reference_standard", where=DATA),
    Item(topic="Who assessed the labels", tripod="8b", needs="labelled_by", where=DATA),
    Item(topic="Blinding of those who assessed the labels", tripod="8c", stard="13b", claim=False),
    Item(topic="Why the sample size was chosen", tripod="10", stard="18"),
    Item(topic="Handling of missing data", tripod="11", stard="16"),
    Item(topic="Partition of the data, and leakage between its parts", tripod="12a", needs="index", where=DATA),
    Item(topic="Type of model and how it was trained", tripod="12c", stard="10a", needs="spec", where=MODEL),
    Item(topic="Measures of performance, their uncertainty", tripod="12e", stard="14", needs="metrics", where=FIGURES),
    Item(topic="Class imbalance", tripod="13", claim=False, needs="spec", where=MODEL),
    Item(topic="Fairness: results of subgroups", tripod="14, 23a", stard="17", needs="subgroups", where=SUBGROUPS),
    Item(topic="Output of the model, decision thresholds", tripod="15", stard="12a", needs="model", where="Decisions"),
    Item(topic="Ethics approval", tripod="17", needs="ethics", where=DATA, claim=False),
    Item(topic="Funding and conflicts of interest", tripod="18a, 18b", stard="30"),
    Item(topic="Protocol and registration", tripod="18c, 18d", stard="28, 29"),
    Item(topic="Availability of the data", tripod="18e", needs="license", where=DATA),
    Item(topic="Availability of the code", tripod="18f", needs="spec", where=MODEL),
    Item(topic="Involvement of patients and the public", tripod="19", claim=False),
    Item(topic="Flow of participants", tripod="20a", stard="19"),
    Item(topic="Characteristics of participants", tripod="20b", stard="20"),
    Item(topic="Number of images, and of each class", tripod="21", needs="index", where=DATA, claim=False),
    Item(topic="Full specification of the model", tripod="22", needs="model", where=MODEL),
    Item(topic="Performance with confidence intervals", tripod="23a", stard="24", needs="metrics", where=FIGURES),
    Item(topic="Cross tabulation with the reference standard", stard="23", needs="matrix", where=FIGURES, claim=False),
    Item(topic="Test on external data", needs="external", where=FIGURES),
    Item(topic="Robustness: what else classifies the images", needs="audit", where="What limits the figures"),
    Item(topic="Interpretation of the results", tripod="25", stard="27"),
    Item(topic="Limitations", tripod="26", stard="26", needs="metrics", where="What limits the figures"),
    Item(topic="Use with poor input, and how users interact with it", tripod="27a, 27b", claim=False),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FilledItem:
    """An item with the section of the card that fills it, or `not stated`."""

    item: Item
    where: str

    @property
    def is_open(self) -> bool:
        """Whether the card leaves it open."""
        return self.where == NOT_STATED


def filled_items(known: Collection[str]) -> list[FilledItem]:
    """Return each item with what fills it; `known` has the names of what is known about the model."""
    return [FilledItem(item=item, where=item.where if item.needs in known else NOT_STATED) for item in ITEMS]
