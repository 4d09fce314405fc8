"""The web page of `deformable-detr explore`: what is chosen, its drawing and its numbers, and the page around them."""
