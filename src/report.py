from lightning_diffusion.app.report import main

if __name__ == "__main__":
    main()
