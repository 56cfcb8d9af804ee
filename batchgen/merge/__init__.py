"""The merger: committed shards in, a deduplicated and filtered dataset version out."""

from batchgen.merge.version import Version, latest_version, merge_run, read_version

__all__ = ["Version", "latest_version", "merge_run", "read_version"]
