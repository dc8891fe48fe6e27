from lightning_diffusion.app.summary import main

if __name__ == "__main__":
    main()
