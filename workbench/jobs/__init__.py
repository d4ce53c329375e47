"""Queue, workers and progress of jobs."""
