from lightning_diffusion.app.evaluate import main

if __name__ == "__main__":
    main()
