package porttest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// TestMain can make the binary a process that takes ports, prints them, and waits.
func TestMain(m *testing.M) {
	if os.Getenv("PORTTEST_TAKE") != "" {
		for range 300 {
			port, err := Free()
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(port)
		}
		fmt.Println("all")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends it
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestEachPortHasOneProcess: no two processes get the same port, and no process gets a port
// twice.
func TestEachPortHasOneProcess(t *testing.T) {
	var mu sync.Mutex
	had := map[string]bool{}
	var taking sync.WaitGroup
	for range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "PORTTEST_TAKE=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
		taking.Go(func() {
			lines := 0
			for s := bufio.NewScanner(out); s.Scan() && s.Text() != "all"; lines++ {
				mu.Lock()
				if had[s.Text()] {
					t.Errorf("port %s was given twice", s.Text())
				}
				had[s.Text()] = true
				mu.Unlock()
			}
			if lines != 300 {
				t.Errorf("%d ports", lines)
			}
		})
	}
	taking.Wait()
}
