// Command keeper has the router that its arguments are, says which process that
// is, and stays.
package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
)

func main() {
	k, err := control.Start(context.Background(), control.Options{Argv: os.Args[1:]})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer k.Close()
	if _, err := k.Stats(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	unix.Pause()
}
