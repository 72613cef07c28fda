"""The viewer: one HTML file in which the layers of results are looked at, moved and saved, without any network."""
