"""Dashboard clients: wandb, TensorBoard, MLflow and SwanLab. No torch."""
