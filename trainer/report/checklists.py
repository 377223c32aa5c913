"""Items of reporting guidelines for medical models, and which of them a model card fills.

TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378, its 52 items. STARD-AI: Sounderajah et al. 2025, Nature Medicine
31:3283, table 2, whose numbers differ from those of STARD 2015. CLAIM: Tejani et al. 2024, Radiology: Artificial
Intelligence 6(4):e240300, its 44 items. A number stands here only where the item itself asks for the topic.
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
        stard: Numbers of the items in STARD-AI 2025, likewise.
        claim: Numbers of the items in CLAIM 2024, likewise.
        needs: What must be known to fill it; "" if nothing in a card fills it.
        where: Section of the card that fills it.
    """

    topic: str
    tripod: str = ""
    stard: str = ""
    claim: str = ""
    needs: str = ""
    where: str = ""


DATA, MODEL, FIGURES, SUBGROUPS = "Data", "Model and training", "Metrics", "Metrics by subgroup"
ITEMS = (
    Item(topic="Intended use", tripod="3b", stard="3", claim="3", needs="intended_use", where="Intended use"),
    Item(topic="Source of the data", tripod="5a", stard="11", claim="7", needs="source", where=DATA),
    Item(topic="Dates of the data", tripod="5b", stard="9", needs="dates", where=DATA),
    Item(topic="Setting and sites", tripod="6a", stard="9", needs="sites", where=DATA),
    Item(topic="Eligibility of participants", tripod="6b", stard="7", claim="8", needs="population", where=DATA),
    Item(topic="Image acquisition", stard="13, 14", claim="13"),
    Item(topic="Preparation of the data", tripod="7", stard="14", claim="9", needs="index", where=DATA),
    Item(topic="Removal of identifiers", claim="11", needs="group_key", where=DATA),
    Item(topic="Reference standard of the labels", tripod="8a", stard="16a", claim="14",
         needs="reference_standard", where=DATA),
    Item(topic="Who assessed the labels", tripod="8b", stard="12", claim="16", needs="labelled_by", where=DATA),
    Item(topic="Blinding of those who assessed the labels", tripod="8c", stard="17b"),
    Item(topic="Why the sample size was chosen", tripod="10", stard="22", claim="21"),
    Item(topic="Handling of missing data", tripod="11", stard="20", claim="12"),
    Item(topic="Partition of the data, and leakage between its parts", tripod="12a", stard="15b", claim="19, 20",
         needs="index", where=DATA),
    Item(topic="Type of model and how it was trained", tripod="12c", stard="15a, 15b", claim="22, 25",
         needs="spec", where=MODEL),
    Item(topic="Measures of performance, their uncertainty", tripod="12e", stard="18", claim="28, 29",
         needs="metrics", where=FIGURES),
    Item(topic="Class imbalance", tripod="13", claim="19", needs="spec", where=MODEL),
    Item(topic="Fairness: results of subgroups", tripod="14, 23a", stard="23", claim="37",
         needs="subgroups", where=SUBGROUPS),
    Item(topic="Output of the model, decision thresholds", tripod="15", stard="15c", needs="model", where="Decisions"),
    Item(topic="Ethics approval", tripod="17", stard="6", needs="ethics", where=DATA),
    Item(topic="Funding and conflicts of interest", tripod="18a, 18b", stard="38, 39", claim="44"),
    Item(topic="Protocol and registration", tripod="18c, 18d", stard="36, 37", claim="42"),
    Item(topic="Availability of the data", tripod="18e", stard="40a", claim="43", needs="license", where=DATA),
    Item(topic="Availability of the code", tripod="18f", stard="40a", claim="43", needs="spec", where=MODEL),
    Item(topic="Involvement of patients and the public", tripod="19"),
    Item(topic="Flow of participants", tripod="20a", stard="24", claim="35"),
    Item(topic="Characteristics of participants", tripod="20b", stard="25", claim="36"),
    Item(topic="Number of images, and of each class", tripod="21", stard="15b", needs="index", where=DATA),
    Item(topic="Full specification of the model", tripod="22", stard="15a", claim="22", needs="model", where=MODEL),
    Item(topic="Performance with confidence intervals", tripod="23a", stard="31", claim="38",
         needs="metrics", where=FIGURES),
    Item(topic="Cross tabulation with the reference standard", stard="30", claim="39", needs="matrix", where=FIGURES),
    Item(topic="Test on external data", stard="15b", claim="33", needs="external", where=FIGURES),
    Item(topic="Robustness: what else classifies the images", claim="30",
         needs="audit", where="Limitations"),
    Item(topic="Interpretation of the results", tripod="25", stard="34", claim="41"),
    Item(topic="Limitations", tripod="26", stard="33", claim="40", needs="metrics", where="Limitations"),
    Item(topic="Use with poor input, and how users interact with it", tripod="27a, 27b", stard="15d"),
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
