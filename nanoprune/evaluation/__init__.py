"""From a model to numbers with intervals, and the page that shows them."""
