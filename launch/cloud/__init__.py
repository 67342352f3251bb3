"""Google Cloud: gcloud, the bucket, machines and what they cost."""
