from lightning_diffusion.app.sample import main

if __name__ == "__main__":
    main()
