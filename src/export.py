from lightning_diffusion.app.export import main

if __name__ == "__main__":
    main()
