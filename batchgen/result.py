"""What a run gave, for programs."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.hub import publish_hub
from batchgen.merge.version import Version
from batchgen.progress import Progress
from batchgen.store import open_store


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Args:
        progress: of all committed rows.
        run: location of the run.
        dataset: the published dataset: a folder, which `load_dataset` opens, or a place in a bucket, which it does not.
    """

    run: str
    progress: Progress
    version: Version
    dataset: str

    @property
    def complete(self) -> bool:
        """Whether the dataset is of all rows; otherwise the same call goes on with the rest."""
        return self.version.shards == self.version.of_shards

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads the dataset to the Hugging Face Hub, in one commit, in the place of an earlier one.

        Args:
            repo_id: the dataset's name there, ORG/NAME.
            private: of a repository that is made for it.
            token: of an account; by default the environment's, or that of `hf auth login`.

        Returns:
            Its address.

        Raises:
            UserError: there is no such name; it may not be written with this token, or has a card that you have edited,
                and other data.
            StoreError: the Hub cannot be reached, or fails.
        """
        return publish_hub(open_store(self.run), self.version, repo_id, private, token)
