"""The call shapes of other packages, so that scripts written for them run after changing an import."""
