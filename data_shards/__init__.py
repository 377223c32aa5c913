"""What a shard is: packing, checking, planning and streaming. Imports no other package of the project."""
