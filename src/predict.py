from lightning_diffusion.app.predict import main

if __name__ == "__main__":
    main()
