from lightning_diffusion.app.train import main

if __name__ == "__main__":
    main()
