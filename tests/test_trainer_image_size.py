import pytest

from data_shards.index import Shard, ShardIndex
from trainer.errors import ModelMismatch, SpecError
from trainer.specs.image_size import check_model_input, check_training_size


def index(*, packed, source):
    """Return the index of images packed with a short side of `packed` from images of up to `source` pixels."""
    shard = Shard(name="train-00000.tar", split="train", samples=2, per_class=(1, 1), bytes=1, sha256="0" * 64)
    sides = (source, source, source)
    return ShardIndex(classes=("a", "b"), shards=(shard,), image_size=packed, widths=sides, heights=sides)


@pytest.mark.parametrize(
    ("packed", "source", "image_size"),
    [
        (256, 1024, 256),
        (256, 1024, 32),
        (256, 32, 224),  # smaller source images are enlarged to the network's own input
        (0, 32, 224),
        (0, 1024, 1024),
        (0, 0, 2048),  # an index that does not say
        (512, 400, 400),
    ],
)
def test_an_input_that_the_images_fill_is_accepted(packed, source, image_size):
    data = index(packed=packed, source=source)

    check_training_size(image_size, data, "shards")
    check_model_input(image_size, data, "shards")


@pytest.mark.parametrize(
    ("packed", "source", "image_size", "text"),
    [
        (256, 1024, 257, "--image-size 257 is above the 256 pixels of the short side that shards stores; "
                         "use --image-size 256 or less, or pack the images again with --image-size 257"),
        (64, 64, 224, "--image-size 224 is above the 64 pixels of the short side that shards stores; "
                      "use --image-size 64 or less, or pack the images again with --image-size 224"),
        (256, 0, 512, "--image-size 512 is above the 256 pixels of the short side that shards stores; "
                      "use --image-size 256 or less, or pack the images again with --image-size 512"),
        (256, 256, 512, "--image-size 512 is above the short side of every image in shards, 256 pixels or less; "
                        "use --image-size 256 or less"),
        (0, 300, 512, "--image-size 512 is above the short side of every image in shards, 300 pixels or less; "
                      "use --image-size 300 or less"),
        (0, 32, 256, "--image-size 256 is above the short side of every image in shards, 32 pixels or less; "
                     "use --image-size 224 or less"),
    ],
)  # fmt: skip
def test_training_above_what_the_shards_hold_is_refused_with_the_size_to_use(packed, source, image_size, text):
    with pytest.raises(SpecError) as error:
        check_training_size(image_size, index(packed=packed, source=source), "shards")

    assert str(error.value) == text


@pytest.mark.parametrize(
    ("packed", "source", "text"),
    [
        (256, 1024, "the model's input has 512 pixels and the images in shards have a short side of at most 256; "
                    "pack them again with --image-size 512"),
        (0, 300, "the model's input has 512 pixels and the images in shards have a short side of at most 300; "
                 "use larger images, or a model with a smaller --image-size"),
    ],
)  # fmt: skip
def test_a_model_is_not_used_on_smaller_images(packed, source, text):
    with pytest.raises(ModelMismatch) as error:
        check_model_input(512, index(packed=packed, source=source), "shards")

    assert str(error.value) == text
