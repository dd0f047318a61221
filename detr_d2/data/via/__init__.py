"""From annotations of the VGG Image Annotator to COCO's format."""
