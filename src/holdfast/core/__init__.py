"""The vocabulary of continual learning: step, operation, method, learner, engine, experience, stream, boundary."""
