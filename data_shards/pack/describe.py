"""Changes what is stated about a data set; its images and its digest stay."""

from data_shards.about import About
from data_shards.errors import SourceError
from data_shards.index import ShardIndex, read_index, write_index
from data_shards.locations import local_folder
from data_shards.pack.add_folder import open_add_folder


def describe(location: str, about: About) -> ShardIndex:
    """Replace the statements about a data set and return its index. It waits for no other change of the data set.

    Raises:
        SourceError: The data set is not on this machine, or images are being added to it.
        BadIndex: The data set is damaged.
    """
    target = local_folder(location)
    if target is None:
        raise SourceError(f"{location} is not on this machine; describe a local copy, and upload its index.json")
    read_index(location)  # refused before anything is written
    with open_add_folder(target):
        index = read_index(location).model_copy(update={"about": about})
        write_index(target, index)
    return index
