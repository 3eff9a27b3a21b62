// Command worker-go has a device that is too hot blink. It is the whole of a worker: start it as often as you like, the
// devices are shared among all of them.
//
//	naru worker add hot-go --hears 'device/+/telemetry'
//	NARU_URL=http://127.0.0.1:8780 NARU_TOKEN=… worker-go
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/naru-platform/naru/service_platform/worker/sdk"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := sdk.Run(ctx, "hot-go", hot, sdk.Options{}); err != nil { // NARU_URL, NARU_TOKEN, NARU_CA
		fmt.Fprintln(os.Stderr, "worker-go:", err)
		os.Exit(1)
	}
}

func hot(_ context.Context, c *sdk.Call) error {
	var reading struct {
		Celsius float64 `json:"celsius"`
	}
	if err := json.Unmarshal(c.Message.Data, &reading); err != nil {
		return sdk.Reject(fmt.Errorf("no reading: %w", err)) // never a reading later: dead, and listed with this reason
	}
	if reading.Celsius <= 30 {
		return sdk.ErrNotMatched
	}
	// The message's id names the command: given twice, it is still one.
	return c.Say("device."+c.Message.Device+".command.blink."+c.Message.ID, []byte(`{"times":3}`))
}
