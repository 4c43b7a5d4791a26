"""Feature extractors that several networks share: ``backbone(image)`` gives its maps, finest first."""
