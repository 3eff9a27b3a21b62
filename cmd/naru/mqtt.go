package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/broker"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// ofWhom ends a sentence about clients, of one where one was asked for.
func ofWhom(name string) string {
	if name == "" {
		return "."
	}
	return " as " + name + "."
}

// mqttCommand shows what a broker holds of its clients.
func mqttCommand(o *options) *cobra.Command {
	mqtt := &cobra.Command{Use: "mqtt", Short: "What a broker holds of its clients, and what these may"}
	var client, device string
	sessions := &cobra.Command{Use: "sessions", Short: "Sessions: who, what they subscribed to, and what waits for them", Args: cobra.NoArgs,
		Example: "  naru mqtt sessions\n  naru mqtt sessions --client d-17 -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{}
			if client != "" {
				q.Set("client", client)
			}
			list := []session.Show{}
			if err := cl.get(c.Context(), "/api/v1/broker/sessions", q, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("No client has a session"+ofWhom(client), "CLIENT", "IDENTITY", "MOUNT", "CONNECTED", "EXPIRES AFTER", "WAITING", "SUBSCRIPTIONS")
				for _, s := range list {
					expires := "with its connection"
					if s.ExpirySeconds > 0 {
						expires = exactly(time.Duration(s.ExpirySeconds) * time.Second)
					}
					p.row(s.ClientID, s.Identity, s.Mount, yes(s.Connected), expires, fmt.Sprint(s.Waiting), fmt.Sprint(len(s.Subscriptions)))
				}
			})
		}}
	sessions.Flags().StringVar(&client, "client", "", "client id")
	connections := &cobra.Command{Use: "connections", Short: "Connections: from where, since when, how much", Args: cobra.NoArgs,
		Example: "  naru mqtt connections --device d-17",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{}
			if device != "" {
				q.Set("device", device)
			}
			list := []broker.Connection{}
			if err := cl.get(c.Context(), "/api/v1/broker/connections", q, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("No client is connected"+ofWhom(device), "CLIENT", "DEVICE", "LISTENER", "FROM", "SINCE", "MQTT", "TLS", "RECEIVED", "SENT", "IN FLIGHT")
				for _, k := range list {
					p.row(k.ClientID, k.Device, k.Listener, k.Address, k.Since.UTC().Format(time.RFC3339), k.Version, yes(k.TLS),
						fmt.Sprint(k.Received), fmt.Sprint(k.Sent), fmt.Sprint(k.InFlight))
				}
			})
		}}
	connections.Flags().StringVar(&device, "device", "", "device")
	mqtt.AddCommand(sessions, connections, mqttMay(o))
	return mqtt
}
