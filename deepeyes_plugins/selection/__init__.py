"""Choose and make training data with a model: play, judge, keep."""
