"""The paper's data curation as a pipeline: docs/data.md says how to use it, `pipeline.run_pipeline` runs it."""
