package doctor_test

import (
	"context"
	"fmt"
	"io"
	"strings"

	"claviger/doctor"
	"claviger/terminal"
)

// The example checks a service whose port is taken. The check that needs the port is skipped.
func ExampleRun() {
	role := doctor.Role{Name: "shop",
		Groups: func(*doctor.Options) ([]doctor.Group, func() error, error) {
			return []doctor.Group{{Title: "network", Checks: []doctor.Check{
				{ID: "D-port", Title: "the port is free", Why: "the server must listen",
					Run: func(context.Context) []doctor.Finding {
						return doctor.Fail("port 80 is taken by process 7", "stop that process")
					}},
				{ID: "D-answer", Title: "the server answers", Needs: []string{"D-port"},
					Run: func(context.Context) []doctor.Finding { return doctor.Pass("it answers") }},
			}}}, func() error { return nil }, nil
		}}
	var out strings.Builder
	o := doctor.Options{Conf: "/", Out: *terminal.To(&out)}
	err := doctor.Run(context.Background(), &o, []doctor.Role{role}, io.Discard)
	_, results, _ := strings.Cut(out.String(), "\n\n") // without the time
	fmt.Print(results)
	fmt.Println(err)
	// Output:
	// network: failure
	//   failure  D-port    port 80 is taken by process 7
	//            cure: stop that process
	//            why: the server must listen
	//   skipped  D-answer  D-port failed
	//
	// 1 failure (D-port), no warning; passed: 0, skipped: 1
	// these checks failed: D-port
}
