"""The paper in miniature: its ablations with a tiny base model on a CPU, and its figures from them."""
