"""What drives Ray: the coordinator, the engine, sampling and scoring streams, the Ray Train loops."""
