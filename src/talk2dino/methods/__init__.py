"""Every method that the evaluator and the demo can run, by the names of its models."""
