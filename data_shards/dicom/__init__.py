"""Reads DICOM files: their pixels as they are displayed, and the few header fields that packing needs. Needs pydicom.

No text of a header leaves this package: errors name fields and numbers, never a text value.
"""

from typing import Literal, TypeAlias

DicomFrame: TypeAlias = Literal["only", "first"]  # of a file with several frames: refuse it, or take the first one
