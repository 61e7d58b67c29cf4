"""Model weights that the workers of a node share. `docs/architecture.md` says who owns them and how they travel."""
