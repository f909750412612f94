"""Programs that show zc_anyio at work; run them from the root of the source tree."""
