"""What drives Ray: the coordinator and its pipeline, the engine, sampling and scoring streams, Ray Train runs."""
