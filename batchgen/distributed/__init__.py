"""Ray: where engines run on a cluster, and job submission. The only importers of ray."""
