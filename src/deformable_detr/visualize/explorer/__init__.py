"""The web page of `deformable-detr explore`: what is chosen, how it is drawn and told, and the page around it."""
